def in_use(*_): pass
claim = race = swapped = data_disks = in_use
