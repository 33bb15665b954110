"""What every service of ours that speaks HTTP has in common."""
