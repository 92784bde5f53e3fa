"""Contract tests of components, for any pytest: `pytest --pyargs multicrop.contracts -k NAME`.

They run on the options of conf/, on those that installed packages declare as entry points, and on those of the folder that the variable
MULTICROP_CONFIG_DIR names, whose modules are also searched in the current folder.
"""
