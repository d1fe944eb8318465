"""The command line: `app` and one file a command; only `render.Terminal` writes to the terminal."""
