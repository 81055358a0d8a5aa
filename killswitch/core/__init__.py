"""The pure heart of killswitch: modes, scopes, the flag, permits, certificates and the history chain.

Nothing in this package does I/O, reads a clock or draws a random number: every function takes what it needs and
returns what is to be done. It imports nothing outside the standard library, so that an order router can afford it.
"""
