"""The web role; its room is kept, nothing lives here yet."""
