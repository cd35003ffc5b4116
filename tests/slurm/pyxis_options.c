/* Stands in for pyxis where there are no containers: a SPANK plugin that takes pyxis' options for srun, refuses what pyxis
 * refuses of their form, and appends each as a line `JOB.STEP OPTION=VALUE` to the file of its argument `record=FILE`.
 * Names and meanings are those of NVIDIA/pyxis 0.24.0, args.c. The command itself runs on the node, in no container.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis_options, 1);

#define NUM_OPTIONS 12
#define MAX_VALUE 8192

static const char *names[NUM_OPTIONS] = {
	"container-image", "container-mounts", "container-workdir", "container-name", "container-save", "container-env",
	"container-mount-home", "no-container-mount-home", "container-remap-root", "no-container-remap-root",
	"container-writable", "container-readonly",
};
static const int takes_value[NUM_OPTIONS] = {1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0};
static char values[NUM_OPTIONS][MAX_VALUE];
static int given[NUM_OPTIONS];

/* A mount's source and target are paths: they begin with a dot or a slash (pyxis, add_mount). */
static int bad_mounts(const char *text)
{
	char copy[MAX_VALUE], *entry, *rest = copy;
	snprintf(copy, sizeof(copy), "%s", text);
	while ((entry = strsep(&rest, ",")) != NULL) {
		char *target = strchr(entry, ':');
		if (target == NULL || strspn(entry, "./") == 0 || strspn(target + 1, "./") == 0) {
			slurm_error("pyxis: invalid mount: %s", entry);
			return 1;
		}
	}
	return 0;
}

static int take(int which, const char *value, int remote)
{
	(void)remote;
	if (takes_value[which] && (value == NULL || *value == '\0')) {
		slurm_error("pyxis: --%s: argument required", names[which]);
		return -1;
	}
	if (which == 1 && bad_mounts(value))
		return -1;
	given[which] = 1;
	snprintf(values[which], MAX_VALUE, "%s", value ? value : "");
	return 0;
}

int slurm_spank_init(spank_t sp, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	if (spank_context() != S_CTX_LOCAL && spank_context() != S_CTX_REMOTE)
		return 0;
	for (int i = 0; i < NUM_OPTIONS; i++) {
		struct spank_option option = {
			(char *)names[i], takes_value[i] ? "VALUE" : NULL, "[pyxis] recorded", takes_value[i], i, take,
		};
		if (spank_option_register(sp, &option) != ESPANK_SUCCESS)
			return -1;
	}
	return 0;
}

int slurm_spank_user_init(spank_t sp, int argc, char **argv)
{
	uint32_t job = 0, step = 0;
	FILE *file;

	if (spank_context() != S_CTX_REMOTE || argc < 1 || strncmp(argv[0], "record=", 7) != 0)
		return 0;
	spank_get_item(sp, S_JOB_ID, &job);
	spank_get_item(sp, S_JOB_STEPID, &step);
	file = fopen(argv[0] + 7, "a");
	if (file == NULL)
		return -1;
	for (int i = 0; i < NUM_OPTIONS; i++)
		if (given[i])
			fprintf(file, "%u.%u %s=%s\n", job, step, names[i], values[i]);
	fclose(file);
	return 0;
}
