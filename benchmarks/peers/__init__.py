"""Other people's trainers, each run by a program of its own with packages that are no part of our installation."""
