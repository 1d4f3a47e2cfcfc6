"""What things cost: every fast path against its dense reference and against plain next-token prediction."""
