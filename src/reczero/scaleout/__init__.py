"""More than one machine: the same recipe on verl, and what it will need."""
