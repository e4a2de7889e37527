"""Online training: the stream, the buffers, the study, its launchers and its trainer."""
