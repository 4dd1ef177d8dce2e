/* A libnvidia-ml.so.1 that answers from a recorded sample: the functions that vitscale asks, with NVML's own signatures and units.
   The sample is the file named by NVML_SAMPLE: lines of "name value"; a value of "no" is NVML_ERROR_NOT_SUPPORTED. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
static char uuid[96];

static int look(const char *name, unsigned long long *value) {
    char key[64], text[96];
    FILE *file = fopen(getenv("NVML_SAMPLE"), "r");
    int found = NOT_SUPPORTED;
    while (file && fscanf(file, "%63s %95s", key, text) == 2) {
        if (strcmp(key, "uuid") == 0) strcpy(uuid, text);
        if (strcmp(key, name) == 0 && strcmp(text, "no") != 0) { *value = strtoull(text, NULL, 10); found = OK; }
    }
    if (file) fclose(file);
    return found;
}

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlInit_v2(void) { return OK; }
const char *nvmlErrorString(int code) { return code == NOT_FOUND ? "Not Found" : "Not Supported"; }
int nvmlDeviceGetHandleByUUID(const char *asked, void **device) {
    unsigned long long nothing;
    look("uuid", &nothing);
    *device = uuid;
    return strcmp(asked, uuid) == 0 ? OK : NOT_FOUND;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {     /* total, free, used */
    unsigned long long total, used;
    if (look("memory_total", &total) || look("memory_used", &used)) return NOT_SUPPORTED;
    memory[0] = total; memory[1] = total - used; memory[2] = used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {          /* gpu, memory: percent */
    unsigned long long gpu;
    if (look("utilization_percent", &gpu)) return NOT_SUPPORTED;
    rates[0] = (unsigned)gpu; rates[1] = 0;
    return OK;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    unsigned long long power;
    if (look("power_milliwatts", &power)) return NOT_SUPPORTED;
    *milliwatts = (unsigned)power;
    return OK;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    unsigned long long temperature;
    if (look("temperature_celsius", &temperature)) return NOT_SUPPORTED;
    *celsius = (unsigned)temperature;
    return OK;
}
