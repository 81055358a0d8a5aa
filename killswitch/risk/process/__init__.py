"""The limits of one trading process: their file, how it is followed, audit and state."""
