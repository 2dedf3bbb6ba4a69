"""The MONAI Label server: the app's tasks, datastores, HTTP routes and web pages.

Everything that knows MONAI Label or HTTP belongs here, and no image processing or modelling does. This is the only package that may
import monailabel; it is the topmost layer and may import every other package of lib, but none of them may import it.
"""
