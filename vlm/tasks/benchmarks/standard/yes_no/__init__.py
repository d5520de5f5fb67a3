"""Questions with yes or no as the answer."""
