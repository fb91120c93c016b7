"""The command ``lacy-stream``: command line -> the settings of a room, and a call."""
