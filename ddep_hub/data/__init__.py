"""Reading, splitting, sampling and augmenting images and masks, and a small data set of rendered scenes."""
