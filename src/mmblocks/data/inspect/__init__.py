"""What is in data: figures of records, faults found before training, images and pages of single records."""
