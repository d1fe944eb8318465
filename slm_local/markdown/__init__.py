"""An answer's Markdown as it streams: cut into blocks (`blocks`), a block as Rich shows it (`rendering`)."""
