"""How well steering works, against random concepts."""
