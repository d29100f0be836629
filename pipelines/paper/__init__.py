"""The paper: its printed numbers, its exhibits, what they run, and how they are drawn."""
