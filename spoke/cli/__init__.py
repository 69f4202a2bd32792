"""What a site owner types. Parses arguments, prints, and calls one function of the daemon or of the doctor.

Heavy imports belong inside the commands, so that `--help` answers at once.
"""
