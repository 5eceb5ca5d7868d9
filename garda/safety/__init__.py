"""What may be learnt, and what may leave."""
