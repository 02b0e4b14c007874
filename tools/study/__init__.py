"""The studies behind models/zoo: what the paper claims, measured on the models of this repository."""
