"""How much each candidate must do. No seconds in this folder."""
