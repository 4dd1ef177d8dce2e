/* vitscale.data.native._crop: crop.h for Python.  Python's lock is free while it works. */
#define _GNU_SOURCE             /* dladdr */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "crop.h"
#include "entropy.h"
#include "resize.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#ifndef MOST_IDLE
#define MOST_IDLE 64            /* workspaces that are kept; as many as there were threads at work, up to this */
#endif

/* Taken and given back only while Python's lock is held. */
static workspace *idle[MOST_IDLE + 1];
static int num_idle;

PyDoc_STRVAR(crop_doc,
"crop(data, out, channels, scale, box, resized, window, whole, marks) -> str | None\n\n"
"Fill `out`, of rows * columns * channels bytes.  box: (top, left, height, width) in pixels of the whole image; resized: (height,\n"
"width) it becomes; window: (top, left, rows, columns) of that.  whole: read the coded data to its end.  marks: None,\n"
"or room for some, 12 bytes each: written if whole, else read, and what lies far above the crop is not decoded.  None, or why it is not taken.");

static PyObject *py_crop(PyObject *module, PyObject *arguments)
{
    Py_buffer data, out, marks = {0};
    PyObject *given;
    request asked;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*ii(iiii)(ii)(iiii)pO", &data, &out, &asked.channels, &asked.scale,
                          &asked.top, &asked.left, &asked.height, &asked.width, &asked.to_height, &asked.to_width,
                          &asked.from_row, &asked.from_column, &asked.rows, &asked.columns, &asked.whole, &given))
        return NULL;
    PyObject *answer = NULL;
    if (given != Py_None && PyObject_GetBuffer(given, &marks, PyBUF_WRITABLE))
        goto done;
    if ((asked.channels != 1 && asked.channels != 3) || (asked.scale != 1 && asked.scale != 2 && asked.scale != 4 && asked.scale != 8) ||
        asked.rows < 1 || asked.columns < 1 || asked.rows > 65535 || asked.columns > 65535 ||
        (Py_ssize_t)asked.rows * asked.columns * asked.channels != out.len) {
        PyErr_SetString(PyExc_ValueError, "channels are 1 or 3, scales 1, 2, 4 or 8; out holds rows * columns * channels bytes");
        goto done;
    }
    workspace *mine = num_idle ? idle[--num_idle] : workspace_new();
    if (mine == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    asked.data = data.buf;
    asked.size = (size_t)data.len;
    asked.out = out.buf;
    asked.marks = marks.buf;
    asked.num_marks = (int)(marks.len / (MARK * (Py_ssize_t)sizeof(uint32_t)));
    const char *why;
    Py_BEGIN_ALLOW_THREADS
    why = crop(mine, &asked);
    Py_END_ALLOW_THREADS
    answer = why ? PyUnicode_FromString(why) : Py_NewRef(Py_None);
    if (num_idle < MOST_IDLE)
        idle[num_idle++] = mine;
    else
        workspace_free(mine);
done:
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    PyBuffer_Release(&marks);
    return answer;
}

static PyMethodDef methods[] = {
    {"crop", py_crop, METH_VARARGS, crop_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_crop", "Resized crops of JPEGs.", -1, methods, NULL, NULL, NULL, NULL};

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

/* crop.c reaches into libjpeg's structures (jpegint.h), which change between versions of one soname: only the file it was built with will do. */
static int has_its_libjpeg(void)
{
    Dl_info found;
    char *path = dladdr((void *)jpeg_std_error, &found) && found.dli_fname ? realpath(found.dli_fname, NULL) : NULL;
    const char *name = path ? (strrchr(path, '/') ? strrchr(path, '/') + 1 : path) : "an unknown file";
    int same = !strcmp(name, LIBRARY);
    if (!same)
        PyErr_Format(PyExc_ImportError, "it was built with %s and finds %s; build it again: python vitscale/data/native/build.py", LIBRARY, name);
    free(path);
    return same;
}

PyMODINIT_FUNC PyInit__crop(void)
{
    if (!has_its_libjpeg())
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddIntConstant(module, "INTERFACE", 2) || PyModule_AddStringConstant(module, "LIBJPEG", "libjpeg-turbo " TEXT(LIBJPEG_TURBO_VERSION)) ||
                   PyModule_AddStringConstant(module, "SOURCES", SOURCES) ||
                   PyModule_AddStringConstant(module, "INSTRUCTIONS", instructions()))) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
