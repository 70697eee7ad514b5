/* A stand-in for libnvidia-ml.so.1: enough of NVML for pynvml, gpustat and nvitop.
 *
 * Every answer comes from a text file that MEMPLAN_FAKE_NVML names. It is read again on the first
 * call after it changed, so a running process sees new values and faults at once: replace it by
 * rename, then write another number (8 bytes, never 0) into the file beside it whose name ends with
 * ".number". One statement a line, fields by blanks; memplan/testing/nvml.py writes both.
 *
 *   driver TEXT              driver version
 *   init CODE                what nvmlInit answers (0 = all is well)
 *   generation N             another number: the driver was loaded anew, old handles are invalid
 *   gpu UUID KEY=VALUE ...   a device; what follows belongs to it. A key that is missing is
 *                            "not supported"
 *   mig UUID KEY=VALUE ...   a MIG device of the last gpu
 *   proc KIND PID BYTES|na   a process on the last gpu or mig; KIND is compute or graphics
 *   fault NAME UUID|* WHAT   function NAME: error=CODE, sleep=MILLISECONDS, or grow=N (a process
 *                            list that finds too little room tells N processes too few)
 *   event N UUID TYPE DATA   an event; N rises, each event set hands each event out once
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define OK 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define TIMED_OUT 10
#define GPU_IS_LOST 15

#define MOST_GPUS 128
#define MOST_PROCESSES 4096
#define MOST_FAULTS 64
#define MOST_EVENTS 256
#define MOST_HANDLES 65536
#define MOST_KEYS 32
#define UUID_SIZE 96
#define PUBLIC __attribute__((visibility("default")))

typedef struct { char key[16]; char value[64]; } Pair;
typedef struct { int graphics; unsigned pid; uint64_t bytes; } Listed;
typedef struct {
    char uuid[UUID_SIZE];
    int parent; /* index of the physical device, or -1 */
    int pairs, first, count; /* processes: first ... first + count */
    Pair pair[MOST_KEYS];
} Gpu;
typedef struct { char name[64], uuid[UUID_SIZE]; int error, sleep_ms, grow; } Fault;
typedef struct { long number; char uuid[UUID_SIZE]; uint64_t type, data; } Event;
typedef struct { char uuid[UUID_SIZE]; int generation; } Handle;
typedef struct { long seen; char uuids[MOST_GPUS][UUID_SIZE]; int count; } EventSet;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const volatile uint64_t *number_written;
static uint64_t number_read; /* of the state that was read */
static char driver[64];
static int init_answer, state_generation, starts, started;
static Gpu gpus[MOST_GPUS];
static Listed processes[MOST_PROCESSES];
static Fault faults[MOST_FAULTS];
static Event events[MOST_EVENTS];
static Handle handles[MOST_HANDLES];
static int gpu_count, process_count, fault_count, event_count, handle_count;

/* ---- the state file ---- */

static void copy(char *to, size_t room, const char *text) {
    size_t size = strnlen(text, room - 1);
    memcpy(to, text, size);
    to[size] = 0;
}

static void add_pairs(Gpu *gpu, char *rest) {
    char *save, *word;
    for (word = strtok_r(rest, " ", &save); word && gpu->pairs < MOST_KEYS;
         word = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(word, '=');
        if (!equals) continue;
        *equals = 0;
        Pair *pair = &gpu->pair[gpu->pairs++];
        copy(pair->key, sizeof pair->key, word);
        copy(pair->value, sizeof pair->value, equals + 1);
    }
}

static void add_gpu(char *line, int is_mig) {
    static int physical;
    int used = 0;
    if (gpu_count == MOST_GPUS) return;
    Gpu *gpu = &gpus[gpu_count];
    memset(gpu, 0, sizeof *gpu);
    if (sscanf(line, "%*s %95s%n", gpu->uuid, &used) != 1) return;
    if (!is_mig) physical = gpu_count;
    gpu->parent = is_mig ? physical : -1;
    gpu->first = process_count;
    add_pairs(gpu, line + used);
    gpu_count++;
}

/* There are hundreds of these lines: scanf would take most of what a new state takes. */
static void add_process(const char *line) {
    if (!gpu_count || process_count == MOST_PROCESSES) return;
    const char *kind = line + strlen("proc "), *after = strchr(kind, ' ');
    if (!after) return;
    char *size;
    unsigned long pid = strtoul(after, &size, 10);
    if (size == after || *size++ != ' ') return;
    Listed *entry = &processes[process_count++];
    entry->graphics = strncmp(kind, "graphics ", strlen("graphics ")) == 0;
    entry->pid = (unsigned)pid;
    entry->bytes = strcmp(size, "na") ? strtoull(size, NULL, 10) : UINT64_MAX;
    gpus[gpu_count - 1].count++;
}

static void add_fault(const char *line) {
    char what[64];
    if (fault_count == MOST_FAULTS) return;
    Fault *fault = &faults[fault_count];
    memset(fault, 0, sizeof *fault);
    if (sscanf(line, "fault %63s %95s %63s", fault->name, fault->uuid, what) != 3) return;
    sscanf(what, "error=%d", &fault->error);
    sscanf(what, "sleep=%d", &fault->sleep_ms);
    sscanf(what, "grow=%d", &fault->grow);
    fault_count++;
}

static void add_event(const char *line) {
    unsigned long long type, data;
    if (event_count == MOST_EVENTS) return;
    Event *event = &events[event_count];
    if (sscanf(line, "event %ld %95s %llu %llu", &event->number, event->uuid, &type, &data) != 4)
        return;
    event->type = type;
    event->data = data;
    event_count++;
}

static void parse(char *line) {
    if (!strncmp(line, "gpu ", 4)) add_gpu(line, 0);
    else if (!strncmp(line, "mig ", 4)) add_gpu(line, 1);
    else if (!strncmp(line, "proc ", 5)) add_process(line);
    else if (!strncmp(line, "fault ", 6)) add_fault(line);
    else if (!strncmp(line, "event ", 6)) add_event(line);
    else {
        sscanf(line, "driver %63s", driver);
        sscanf(line, "init %d", &init_answer);
        sscanf(line, "generation %d", &state_generation);
    }
}

/* The number that the file "$MEMPLAN_FAKE_NVML.number" holds, mapped: another one after each write.
 * There are dozens of calls for each, and to look at the file itself would take most of them. */
static const volatile uint64_t *map_number(const char *path) {
    char name[4096];
    struct stat found;
    snprintf(name, sizeof name, "%s.number", path);
    int file = open(name, O_RDONLY | O_CLOEXEC);
    if (file < 0) return NULL;
    void *map = MAP_FAILED;
    if (!fstat(file, &found) && found.st_size >= (off_t)sizeof(uint64_t))
        map = mmap(NULL, sizeof(uint64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    return map == MAP_FAILED ? NULL : map;
}

/* Returns the state's text, to be freed; NULL when it cannot be read. */
static char *read_state(const char *path) {
    struct stat found;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return NULL;
    char *text = fstat(file, &found) ? NULL : malloc((size_t)found.st_size + 1);
    ssize_t size = text ? read(file, text, (size_t)found.st_size) : -1;
    close(file);
    if (text) text[size < 0 ? 0 : size] = 0;
    return text;
}

static void refresh(void) {
    if (number_written && *number_written == number_read) return;
    const char *path = getenv("MEMPLAN_FAKE_NVML");
    if (path && !number_written) number_written = map_number(path);
    if (!path || !number_written) return;
    uint64_t number_now = *number_written; /* before the text: what is written now is read again */
    char *text = read_state(path), *save;
    if (!text) return;
    number_read = number_now;
    gpu_count = process_count = fault_count = event_count = init_answer = state_generation = 0;
    snprintf(driver, sizeof driver, "0");
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        parse(line);
    free(text);
}

static const char *find(const Gpu *gpu, const char *key) {
    for (int i = 0; i < gpu->pairs; i++)
        if (!strcmp(gpu->pair[i].key, key)) return gpu->pair[i].value;
    return NULL;
}

static int number(const Gpu *gpu, const char *key, uint64_t *value) {
    const char *text = find(gpu, key);
    if (!text) return NOT_SUPPORTED;
    *value = strtoull(text, NULL, 10);
    return OK;
}

/* ---- handles and faults ---- */

static int generation(void) { return state_generation * 10000 + starts; }

static void *handle_of(const char *uuid) {
    for (int i = 0; i < handle_count; i++)
        if (handles[i].generation == generation() && !strcmp(handles[i].uuid, uuid))
            return (void *)(uintptr_t)(i + 1);
    if (handle_count == MOST_HANDLES) return NULL;
    snprintf(handles[handle_count].uuid, UUID_SIZE, "%s", uuid);
    handles[handle_count].generation = generation();
    return (void *)(uintptr_t)(++handle_count);
}

static Gpu *by_uuid(const char *uuid) {
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) return &gpus[i];
    return NULL;
}

static int device(void *handle, Gpu **gpu) {
    uintptr_t index = (uintptr_t)handle;
    if (index == 0 || index > (uintptr_t)handle_count) return INVALID_ARGUMENT;
    if (handles[index - 1].generation != generation()) return INVALID_ARGUMENT;
    *gpu = by_uuid(handles[index - 1].uuid);
    return *gpu ? OK : GPU_IS_LOST;
}

static int applies(const Fault *fault, const char *name, const char *uuid) {
    return (!strcmp(fault->name, "*") || !strcmp(fault->name, name))
        && (!strcmp(fault->uuid, "*") || !strcmp(fault->uuid, uuid));
}

/* Sleeps with the lock given back: a slow call must not make the others slow. */
static int fault_of(const char *name, const char *uuid) {
    int error = OK, sleep_ms = 0;
    for (int i = 0; i < fault_count; i++) {
        if (!applies(&faults[i], name, uuid)) continue;
        if (faults[i].error) error = faults[i].error;
        if (faults[i].sleep_ms > sleep_ms) sleep_ms = faults[i].sleep_ms;
    }
    if (sleep_ms) {
        struct timespec pause = {sleep_ms / 1000, sleep_ms % 1000 * 1000000L};
        pthread_mutex_unlock(&lock);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&lock);
        refresh();
    }
    return error;
}

static int growth(const char *name, const char *uuid) {
    for (int i = 0; i < fault_count; i++)
        if (faults[i].grow && applies(&faults[i], name, uuid)) return faults[i].grow;
    return 0;
}

/* CALL begins a function without a device, ON one with `handle`; both end with END. */
#define CALL(body)                                    \
    {                                                 \
        int answer;                                   \
        pthread_mutex_lock(&lock);                    \
        refresh();                                    \
        answer = started ? fault_of(__func__, "*") : UNINITIALIZED; \
        if (answer == OK) body                        \
        pthread_mutex_unlock(&lock);                  \
        return answer;                                \
    }
#define ON(body)                                      \
    {                                                 \
        int answer;                                   \
        Gpu *gpu = NULL;                              \
        pthread_mutex_lock(&lock);                    \
        refresh();                                    \
        answer = started ? device(handle, &gpu) : UNINITIALIZED; \
        if (answer == OK) {                           \
            const char *uuid = handles[(uintptr_t)handle - 1].uuid; \
            answer = fault_of(__func__, uuid);        \
            if (answer == OK) answer = device(handle, &gpu); \
        }                                             \
        if (answer == OK) body                        \
        pthread_mutex_unlock(&lock);                  \
        return answer;                                \
    }

/* ---- start and end ---- */

PUBLIC int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    refresh();
    int answer = init_answer ? init_answer : fault_of(__func__, "*");
    if (answer == OK) {
        if (!started) starts++;
        started++;
    }
    pthread_mutex_unlock(&lock);
    return answer;
}
PUBLIC int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
PUBLIC int nvmlShutdown(void) CALL({ started--; })
PUBLIC const char *nvmlErrorString(int code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case 9: return "Driver Not Loaded";
    case TIMED_OUT: return "Timeout";
    case 12: return "NVML Shared Library Not Found";
    case GPU_IS_LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}
PUBLIC int nvmlSystemGetDriverVersion(char *text, unsigned size) CALL({
    snprintf(text, size, "%s", driver);
})
PUBLIC int nvmlSystemGetNVMLVersion(char *text, unsigned size) CALL({
    snprintf(text, size, "13.%s", driver);
})
PUBLIC int nvmlSystemGetCudaDriverVersion_v2(int *version) CALL({ *version = 13000; })
PUBLIC int nvmlSystemGetCudaDriverVersion(int *version) CALL({ *version = 13000; })
PUBLIC int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) CALL({
    snprintf(text, size, "process-%u", pid);
})

/* ---- devices ---- */

PUBLIC int nvmlDeviceGetCount_v2(unsigned *count) CALL({
    *count = 0;
    for (int i = 0; i < gpu_count; i++) *count += gpus[i].parent < 0;
})
PUBLIC int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) CALL({
    answer = INVALID_ARGUMENT;
    for (int i = 0; i < gpu_count; i++) {
        if (gpus[i].parent >= 0 || index-- > 0) continue;
        *handle = handle_of(gpus[i].uuid);
        answer = fault_of("handle", gpus[i].uuid);
        break;
    }
})
PUBLIC int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) CALL({
    answer = by_uuid(uuid) ? OK : NOT_FOUND;
    if (answer == OK) *handle = handle_of(uuid);
})
PUBLIC int nvmlDeviceGetIndex(void *handle, unsigned *index) ON({
    *index = 0;
    for (Gpu *other = gpus; other < gpu; other++) *index += other->parent < 0;
})
PUBLIC int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) ON({
    *minor = (unsigned)(gpu - gpus);
})
PUBLIC int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) ON({
    snprintf(text, size, "%s", gpu->uuid);
})
PUBLIC int nvmlDeviceGetName(void *handle, char *text, unsigned size) ON({
    const char *name = find(gpu, "name");
    snprintf(text, size, "%s", name ? name : "Fake GPU");
})

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;
PUBLIC int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) ON({
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)(gpu - gpus) + 1;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->legacy, sizeof pci->legacy, "0000:%02X:00.0", pci->bus);
})

typedef struct { uint64_t total, free, used; } Memory;
typedef struct { unsigned version; uint64_t total, reserved, free, used; } MemoryV2;
static int memory_of(const Gpu *gpu, MemoryV2 *memory) {
    int answer = number(gpu, "total", &memory->total);
    if (answer == OK) answer = number(gpu, "used", &memory->used);
    if (answer == OK && number(gpu, "reserved", &memory->reserved)) memory->reserved = 0;
    memory->free = memory->total - memory->used - memory->reserved;
    return answer;
}
PUBLIC int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) ON({
    MemoryV2 found;
    answer = memory_of(gpu, &found);
    memory->total = found.total;
    memory->used = found.used + found.reserved; /* the first version counts reserved as used */
    memory->free = found.free;
})
PUBLIC int nvmlDeviceGetMemoryInfo_v2(void *handle, MemoryV2 *memory) ON({
    answer = memory->version == 0x02000028 ? memory_of(gpu, memory) : 25;
})

typedef struct { unsigned gpu, memory; } Utilization;
PUBLIC int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) ON({
    uint64_t value;
    answer = number(gpu, "util", &value);
    if (answer == OK) {
        rates->gpu = (unsigned)value;
        rates->memory = number(gpu, "membw", &value) == OK ? (unsigned)value : 0;
    }
})

#define NUMBER(function, key)                                       \
    PUBLIC int function(void *handle, unsigned *value) ON({         \
        uint64_t found;                                             \
        answer = number(gpu, key, &found);                          \
        if (answer == OK) *value = (unsigned)found;                 \
    })
#define NUMBER_OF(function, key)                                    \
    PUBLIC int function(void *handle, int kind, unsigned *value) ON({ \
        uint64_t found;                                             \
        (void)kind;                                                 \
        answer = number(gpu, key, &found);                          \
        if (answer == OK) *value = (unsigned)found;                 \
    })
NUMBER(nvmlDeviceGetPowerUsage, "power")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "limit")
NUMBER(nvmlDeviceGetPowerManagementLimit, "limit")
NUMBER(nvmlDeviceGetFanSpeed, "fan")
NUMBER(nvmlDeviceGetPerformanceState, "pstate")
NUMBER(nvmlDeviceGetBrand, "brand")
NUMBER(nvmlDeviceGetComputeMode, "mode")
NUMBER(nvmlDeviceGetGpuInstanceId, "gi")
NUMBER(nvmlDeviceGetComputeInstanceId, "ci")
NUMBER_OF(nvmlDeviceGetTemperature, "temp")
NUMBER_OF(nvmlDeviceGetMaxClockInfo, "sm")
PUBLIC int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned *value) ON({
    uint64_t found;
    answer = number(gpu, kind == 2 ? "mem" : "sm", &found);
    if (answer == OK) *value = (unsigned)found;
})
typedef struct { unsigned version, sensor; int temperature; } Temperature;
PUBLIC int nvmlDeviceGetTemperatureV(void *handle, Temperature *reading) ON({
    uint64_t found;
    answer = number(gpu, "temp", &found);
    if (answer == OK) reading->temperature = (int)found;
})
PUBLIC int nvmlDeviceGetPcieThroughput(void *handle, int kind, unsigned *value) ON({
    uint64_t found;
    answer = number(gpu, kind == 0 ? "tx" : "rx", &found);
    if (answer == OK) *value = (unsigned)found;
})
PUBLIC int nvmlDeviceGetTotalEnergyConsumption(void *handle, uint64_t *value) ON({
    answer = number(gpu, "energy", value);
})
PUBLIC int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, uint64_t *value) ON({
    (void)counter;
    answer = number(gpu, kind == 1 ? "ecc_hard" : "ecc_soft", value);
})

typedef struct {
    uint32_t field, scope;
    int64_t stamp, latency;
    int type, answer;
    uint64_t value;
} Field;
PUBLIC int nvmlDeviceGetFieldValues(void *handle, int count, Field *fields) ON({
    for (int i = 0; i < count; i++) {
        const char *key = fields[i].field == 138 ? "nvlink_tx" : "nvlink_rx";
        fields[i].type = 3; /* unsigned long long */
        fields[i].answer = number(gpu, key, &fields[i].value);
    }
})

/* ---- MIG ---- */

static Gpu *mig_at(const Gpu *gpu, unsigned index) {
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].parent == (int)(gpu - gpus) && index-- == 0) return &gpus[i];
    return NULL;
}
PUBLIC int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending) ON({
    uint64_t found;
    answer = number(gpu, "mig", &found);
    if (answer == OK) *now = *pending = (unsigned)found;
})
PUBLIC int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) ON({
    (void)gpu;
    *count = 7;
})
PUBLIC int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **found) ON({
    Gpu *mig = mig_at(gpu, index);
    answer = mig ? OK : NOT_FOUND;
    if (mig) *found = handle_of(mig->uuid);
})
PUBLIC int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *handle, void **found) ON({
    answer = gpu->parent < 0 ? INVALID_ARGUMENT : OK;
    if (answer == OK) *found = handle_of(gpus[gpu->parent].uuid);
})
PUBLIC int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is_mig) ON({
    *is_mig = gpu->parent >= 0;
})

/* ---- processes ---- */

typedef struct { unsigned pid; uint64_t bytes; unsigned gi, ci; } Process;
static int list(const char *name, const Gpu *gpu, int graphics, unsigned *count, Process *found) {
    unsigned total = 0, room = found ? *count : 0;
    uint64_t gi = UINT32_MAX, ci = UINT32_MAX;
    number(gpu, "gi", &gi);
    number(gpu, "ci", &ci);
    for (int i = gpu->first; i < gpu->first + gpu->count; i++) {
        if (processes[i].graphics != graphics) continue;
        if (total < room)
            found[total] = (Process){processes[i].pid, processes[i].bytes, gi, ci};
        total++;
    }
    int missing = total > room ? growth(name, gpu->uuid) : 0;
    *count = total > (unsigned)missing ? total - missing : 0;
    return total > room ? INSUFFICIENT_SIZE : OK;
}
PUBLIC int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *found)
ON({ answer = list(__func__, gpu, 0, count, found); })
PUBLIC int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *found)
ON({ answer = list(__func__, gpu, 1, count, found); })
PUBLIC int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *count, Process *found)
ON({
    (void)gpu;
    (void)found;
    *count = 0;
})

PUBLIC int nvmlDeviceGetProcessUtilization(void *handle, void *samples, unsigned *count,
                                           uint64_t since) ON({
    (void)gpu;
    (void)samples;
    (void)since;
    *count = 0;
    answer = NOT_FOUND;
})

/* ---- events ---- */

PUBLIC int nvmlDeviceGetSupportedEventTypes(void *handle, uint64_t *types) ON({
    (void)gpu;
    *types = 0xb;
})
PUBLIC int nvmlEventSetCreate(void **set) CALL({
    EventSet *made = calloc(1, sizeof *made);
    for (int i = 0; i < event_count; i++)
        if (events[i].number > made->seen) made->seen = events[i].number;
    *set = made;
})
PUBLIC int nvmlDeviceRegisterEvents(void *handle, uint64_t types, void *opaque) ON({
    EventSet *set = opaque;
    (void)types;
    if (set->count < MOST_GPUS)
        snprintf(set->uuids[set->count++], UUID_SIZE, "%s", gpu->uuid);
})

typedef struct { void *device; uint64_t type, data; unsigned gi, ci; } EventData;
static int next_event(EventSet *set, EventData *data) {
    for (int i = 0; i < event_count; i++) {
        if (events[i].number <= set->seen) continue;
        for (int k = 0; k < set->count; k++) {
            if (strcmp(set->uuids[k], events[i].uuid)) continue;
            set->seen = events[i].number;
            *data = (EventData){handle_of(events[i].uuid), events[i].type, events[i].data,
                                UINT32_MAX, UINT32_MAX};
            return OK;
        }
    }
    return TIMED_OUT;
}
PUBLIC int nvmlEventSetWait_v2(void *opaque, EventData *data, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 10) {
        pthread_mutex_lock(&lock);
        refresh();
        int answer = started ? fault_of(__func__, "*") : UNINITIALIZED;
        if (answer == OK) answer = next_event(opaque, data);
        pthread_mutex_unlock(&lock);
        if (answer != TIMED_OUT || waited >= timeout_ms) return answer;
        usleep(10000);
    }
}
PUBLIC int nvmlEventSetFree(void *set) CALL({ free(set); })
