/* What nvidia-ml-py asks of libnvidia-ml.so.1, answered for two GPUs with known values.
   GPU 1 has no energy counter, no NVLink and no PCIe counters, as consumer cards have none.
   With LOST in the environment GPU 0 is gone after the first readings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, LOST = 15 };
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type, result;
    union { double d; unsigned long long u; } value;
} field_value;

static int gpus[2] = {0, 1};
static int asked;
#define IT(gpu) (*(int *)(gpu))

int nvmlInitWithFlags(unsigned flags) { (void)flags; return getenv("BROKEN") ? 9 : OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "GPU is lost"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = getenv("EMPTY") ? 0 : 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned k, void **gpu) { *gpu = &gpus[k]; return OK; }
int nvmlDeviceGetName(void *gpu, char *name, unsigned size) {
    snprintf(name, size, "NVIDIA Test %d", IT(gpu));
    return OK;
}
int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned size) {
    snprintf(uuid, size, "GPU-%d", IT(gpu));
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *gpu, utilization *u) {
    if (getenv("LOST") && asked++ > 4) return LOST;
    u->gpu = 70 + IT(gpu);
    u->memory = 5;
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *gpu, memory *m) {
    m->total = 80ull << 30;
    m->used = (60ull + IT(gpu)) << 30;
    m->free = m->total - m->used;
    return OK;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *mw) { *mw = 250500 + IT(gpu); return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *gpu, unsigned *mw) { (void)gpu; *mw = 700000; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *mj) {
    *mj = 123456789;
    return IT(gpu) ? UNSUPPORTED : OK;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *c) {
    *c = 40 + IT(gpu);
    return sensor ? INVALID : OK;
}
int nvmlDeviceGetClockInfo(void *gpu, int kind, unsigned *mhz) {
    (void)gpu;
    *mhz = kind == 1 ? 1980 : kind == 2 ? 2619 : 0;
    return OK;
}
int nvmlDeviceGetPcieThroughput(void *gpu, int counter, unsigned *kb) {
    *kb = counter ? 2000 : 1000;
    return IT(gpu) ? UNSUPPORTED : OK;
}
int nvmlDeviceGetFieldValues(void *gpu, int count, field_value *values) {
    for (int k = 0; k < count; k++) {
        values[k].result = IT(gpu) || values[k].scope != 0xFFFFFFFFu ? UNSUPPORTED : OK;
        values[k].value.u = values[k].field == 138 ? 3 : values[k].field == 139 ? 4 : 99;
    }
    return OK;
}
#ifdef OLD
int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *bits)
#else
int nvmlDeviceGetCurrentClocksEventReasons(void *gpu, unsigned long long *bits)
#endif
{
    *bits = IT(gpu) ? 0x1 | 0x2 | 0x100 : 0x4 | 0x40; /* idle, set so, for a display */
    return OK;
}
