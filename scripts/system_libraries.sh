#!/bin/sh
# The system libraries that MuJoCo needs to draw off screen, on Debian and Ubuntu.
#
# There already: does nothing, needs no network. Missing: installs them as root, otherwise says what to install and
# exits with 1. MUJOCO_GL picks the renderer as it does for MuJoCo: egl (the default here) or osmesa.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
renderer="${MUJOCO_GL:-egl}"

if [ "$(uname -s)" != Linux ]; then
    exit 0
fi
# Pairs of a shared library and the package that brings it.
case "$renderer" in
    egl) pairs="libEGL.so.1:libegl1 libEGL_mesa.so.0:libegl-mesa0 libGL.so.1:libgl1 libOpenGL.so.0:libopengl0" ;;
    osmesa) pairs="libOSMesa.so.8:libosmesa6 libGL.so.1:libgl1 libOpenGL.so.0:libopengl0" ;;
    *) exit 0 ;; # a window system or no drawing at all: nothing for this script to bring
esac

missing_packages() {
    known="$(ldconfig -p)"
    for pair in $pairs; do
        case "$known" in
            *"${pair%%:*} "*) ;;
            *) printf '%s ' "${pair#*:}" ;;
        esac
    done
}

missing="$(missing_packages)"
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Off-screen rendering ($renderer) needs system libraries that are not here. Please install them, as root:" >&2
    echo "    apt-get update && apt-get install --yes --no-install-recommends $missing" >&2
    exit 1
fi
echo "Installing system libraries for off-screen rendering ($renderer): $missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
# The package list is a list of words.
# shellcheck disable=SC2086
apt-get install --yes --quiet --no-install-recommends $missing
ldconfig
missing="$(missing_packages)"
if [ -n "$missing" ]; then
    echo "Installed, but still not found: $missing" >&2
    exit 1
fi
