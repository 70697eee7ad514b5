"""What each screen says, as lines of text with roles: no widgets."""
