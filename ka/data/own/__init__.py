"""Own data: cubes in the formats of the field, known data sets, and the responses of sensors."""
