"""What a plan says of each weight, and what could be chosen."""
