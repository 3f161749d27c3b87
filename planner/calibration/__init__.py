"""What measured runs change about a prediction."""
