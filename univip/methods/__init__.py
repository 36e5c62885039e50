"""Pre-training methods, one file each: views in, losses per image out."""
