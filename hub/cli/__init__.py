"""What people type: `felloe` for who uses a hub, `felloe-hub` for who runs one.

Here belongs parsing of arguments, tables and exit codes. Whatever talks to a hub is `hub.client`; whatever starts
children is `hub.dev`. Modules are imported when their command is called, so that `--help` answers at once.
"""
