"""The machine: what is there (`detect`) and what the user says is there (`parse`)."""
