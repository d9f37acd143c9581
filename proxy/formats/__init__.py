"""How tools are written into a prompt and read back; each format in one file, render and parse side by side."""
