"""Did the long video get better? Measures, compares and shows folders of videos."""
