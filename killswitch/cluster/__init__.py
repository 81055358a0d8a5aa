"""The flag's operations on one store and on several, what is written there, the proof, lost nodes."""
