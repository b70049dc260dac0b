"""What a video is on disk: records of data sets, readers of frames and label maps, checks, and generated videos."""
