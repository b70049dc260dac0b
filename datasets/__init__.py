"""What a video is on disk: records of every layout, readers, checks, clips for training, generated data."""
