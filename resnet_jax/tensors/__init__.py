"""Named arrays in weight files of others' formats, read without torch and without executing anything."""
