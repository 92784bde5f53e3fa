"""multicrop: does a vision-language model see the trees as well as the forest?"""
