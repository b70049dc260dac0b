"""What every part needs and none owns: the user's errors, safe files, progress lines, the frame of a command."""
