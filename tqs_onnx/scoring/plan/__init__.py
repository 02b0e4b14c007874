"""What is to be measured, as values."""
