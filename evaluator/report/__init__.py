"""What is handed to whoever decides: one page that opens anywhere, with twins in Markdown and JSON."""
