/* vitscale.data.native._crop: crop.h and pixels.h for Python.  Python's lock is free while it works. */
#define _GNU_SOURCE             /* dladdr */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "crop.h"
#include "entropy.h"
#include "pixels.h"
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
"crop(data, channels, scale, whole, marks, cuts) -> str | None\n\n"
"cuts: a tuple of tuples (out, box, resized, window).  Fill `out`, of rows * columns * channels bytes.  box: (top, left, height, width)\n"
"in pixels of the whole image; resized: (height, width) it becomes; window: (top, left, rows, columns) of that.  whole: read the coded\n"
"data to its end.  marks: None, or room for some, 12 bytes each: written if whole, else read, and what lies far above the crops is not\n"
"decoded.  None, or why it is not taken.");

#define MOST_CUTS 65536

/* From Python's cuts.  -> how many have a buffer that is to be released; fewer than count: an error is set. */
static Py_ssize_t read_cuts(PyObject *given, Py_ssize_t count, int channels, cut *cuts, Py_buffer *outs)
{
    for (Py_ssize_t number = 0; number < count; number++) {
        cut *one = &cuts[number];
        PyObject *tuple = PyTuple_GetItem(given, number);
        if (!PyTuple_Check(tuple)) {
            PyErr_SetString(PyExc_TypeError, "a cut is a tuple");
            return number;
        }
        if (!PyArg_ParseTuple(tuple, "w*(iiii)(ii)(iiii)", &outs[number], &one->top, &one->left, &one->height, &one->width,
                              &one->to_height, &one->to_width, &one->from_row, &one->from_column, &one->rows, &one->columns))
            return number;
        one->out = outs[number].buf;
        if (one->rows < 1 || one->columns < 1 || one->rows > 65535 || one->columns > 65535 ||
            (Py_ssize_t)one->rows * one->columns * channels != outs[number].len) {
            PyErr_SetString(PyExc_ValueError, "out holds rows * columns * channels bytes");
            PyBuffer_Release(&outs[number]);
            return number;
        }
    }
    return count;
}

static PyObject *py_crop(PyObject *module, PyObject *arguments)
{
    Py_buffer data, marks = {0}, *outs = NULL;
    PyObject *given, *given_cuts, *answer = NULL;
    request asked;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*iipOO!", &data, &asked.channels, &asked.scale, &asked.whole, &given, &PyTuple_Type, &given_cuts))
        return NULL;
    Py_ssize_t count = PyTuple_Size(given_cuts), known = 0;
    cut *cuts = NULL;
    if (given != Py_None && PyObject_GetBuffer(given, &marks, PyBUF_WRITABLE))
        goto done;
    if ((asked.channels != 1 && asked.channels != 3) || (asked.scale != 1 && asked.scale != 2 && asked.scale != 4 && asked.scale != 8) ||
        count < 1 || count > MOST_CUTS) {
        PyErr_SetString(PyExc_ValueError, "channels are 1 or 3, scales 1, 2, 4 or 8; there is at least one cut");
        goto done;
    }
    cuts = calloc((size_t)count, sizeof *cuts);
    outs = calloc((size_t)count, sizeof *outs);
    if (cuts == NULL || outs == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    known = read_cuts(given_cuts, count, asked.channels, cuts, outs);
    if (known < count)
        goto done;
    workspace *mine = num_idle ? idle[--num_idle] : workspace_new();
    if (mine == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    asked.data = data.buf;
    asked.size = (size_t)data.len;
    asked.cuts = cuts;
    asked.num_cuts = (int)count;
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
    for (Py_ssize_t number = 0; number < known; number++)
        PyBuffer_Release(&outs[number]);
    free(cuts);
    free(outs);
    PyBuffer_Release(&data);
    PyBuffer_Release(&marks);
    return answer;
}

PyDoc_STRVAR(augment_doc,
"augment(images, flip, out, count, height, width, channels, first, codes, parameters, fill, table)\n\n"
"Buffers as in pixels.h's batch, each of just the bytes that it wants; codes: places in OPERATIONS.");

static int fits(const Py_buffer *given, Py_ssize_t count, size_t each)
{
    return given->len == count * (Py_ssize_t)each && (!given->len || (uintptr_t)given->buf % each == 0);
}

/* Whether every operation is one, and those of an image follow those of the one before it. */
static int in_order(const batch *asked, Py_ssize_t count)
{
    for (int number = 0; number < asked->count; number++)
        if (asked->first[number] > asked->first[number + 1])
            return 0;
    for (Py_ssize_t one = 0; one < count; one++)
        if (asked->codes[one] < 0 || asked->codes[one] >= num_operations)
            return 0;
    return asked->first[0] == 0 && asked->first[asked->count] == count;
}

static PyObject *py_augment(PyObject *module, PyObject *arguments)
{
    Py_buffer images, flip, out, first, codes, parameters, fill, table;
    batch asked;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*y*w*iiiiy*y*y*y*y*", &images, &flip, &out, &asked.count, &asked.height, &asked.width,
                          &asked.channels, &first, &codes, &parameters, &fill, &table))
        return NULL;
    PyObject *answer = NULL;
    Py_ssize_t operations = codes.len / (Py_ssize_t)sizeof(int64_t), bytes = images.len;
    asked = (batch){asked.count, asked.height, asked.width, asked.channels, images.buf, flip.buf, first.buf, codes.buf, parameters.buf,
                    fill.buf, table.buf, out.buf};
    if ((asked.channels != 1 && asked.channels != 3) || asked.count < 0 || asked.height < 1 || asked.width < 1 ||
        (Py_ssize_t)asked.height * asked.width > (Py_ssize_t)1 << 30 ||
        (asked.count ? bytes / asked.count : 0) != (asked.count ? (Py_ssize_t)asked.height * asked.width * asked.channels : 0) ||
        !fits(&images, bytes, 1) || (asked.count && bytes % asked.count) || !fits(&flip, asked.count, 1) ||
        !fits(&out, bytes, sizeof(float)) || !fits(&first, (Py_ssize_t)asked.count + 1, sizeof(int64_t)) ||
        !fits(&codes, operations, sizeof(int64_t)) || !fits(&parameters, operations * PARAMETERS, sizeof(double)) ||
        !fits(&fill, asked.channels, 1) || !fits(&table, 256 * asked.channels, sizeof(float)) || !in_order(&asked, operations)) {
        PyErr_SetString(PyExc_ValueError, "buffers, sizes and operations do not go together");
        goto done;
    }
    int enough;
    Py_BEGIN_ALLOW_THREADS
    enough = augment(&asked);
    Py_END_ALLOW_THREADS
    answer = enough ? Py_NewRef(Py_None) : PyErr_NoMemory();
done:
    for (Py_buffer *one, **each = (Py_buffer *[]){&images, &flip, &out, &first, &codes, &parameters, &fill, &table, NULL}; (one = *each); each++)
        PyBuffer_Release(one);
    return answer;
}

static PyMethodDef methods[] = {
    {"augment", py_augment, METH_VARARGS, augment_doc},
    {"crop", py_crop, METH_VARARGS, crop_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_crop", "Resized crops of JPEGs, and their augmentation.", -1, methods, NULL, NULL, NULL, NULL};

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

/* The names of pixels.h's operations, by their codes. */
static PyObject *names(void)
{
    PyObject *found = PyTuple_New(num_operations);
    for (int code = 0; found && code < num_operations; code++) {
        PyObject *name = PyUnicode_FromString(operation_name(code));
        if (name == NULL || PyTuple_SetItem(found, code, name))
            Py_CLEAR(found);
    }
    return found;
}

PyMODINIT_FUNC PyInit__crop(void)
{
    if (!has_its_libjpeg())
        return NULL;
    PyObject *module = PyModule_Create(&definition), *operations = names();
    if (module && (operations == NULL || PyModule_AddObjectRef(module, "OPERATIONS", operations) ||
                   PyModule_AddIntConstant(module, "INTERFACE", 4) ||
                   PyModule_AddStringConstant(module, "LIBJPEG", "libjpeg-turbo " TEXT(LIBJPEG_TURBO_VERSION)) ||
                   PyModule_AddStringConstant(module, "SOURCES", SOURCES) ||
                   PyModule_AddStringConstant(module, "INSTRUCTIONS", instructions())))
        Py_CLEAR(module);
    Py_XDECREF(operations);
    return module;
}
