"""What people look at: a study's numbers for the terminal, as a page, in Markdown and in LaTeX."""
