"""Can a net's doubt tell what it was trained on from what it was not? Two folders of IDX images."""
