"""Recording what crosses the interfaces, and reading it again: captures, decryption, timeline."""
