"""What belongs to a conversation besides its messages: numbers of its answers, original media, its written forms."""
