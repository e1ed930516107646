"""`gnp-scale plan`: what a run takes on hardware that is not there, from the step that its compilers make."""
