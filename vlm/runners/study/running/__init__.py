"""Doing what a study asks: the queue of its cells, the processes that train them, what is left in the folder."""
