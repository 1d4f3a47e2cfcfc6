"""Plans: what a run will cost, computed before it starts."""
