"""How fast a run is, and what makes it faster: numbers per step, profiles, compiled blocks."""
