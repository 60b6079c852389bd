"""What `moreh-smi` and `ap-smi` print, as published: docs.moreh.io (2023 to 2024) and the
repositories moreh-dev/quickstart and moreh-dev/moai-examples (to 2025).
"""

# ruff: noqa: E501  (the tables are as wide as they are)

# The toolkit page, 24.5.0, while a program runs.
RUNNING = """\
+-----------------------------------------------------------------------------------------------------+
|                                                    Current Version: 24.5.0  Latest Version: 24.5.0  |
+-----------------------------------------------------------------------------------------------------+
|  Device  |        Name         |       Model      |  Memory Usage  |  Total Memory  |  Utilization  |
+=====================================================================================================+
|  * 0     |  MoAI Accelerator   |  xLarge.512GB    |    397 MiB     |  524160 MiB    |      0 %      |
+-----------------------------------------------------------------------------------------------------+

Processes:
+-----------------------------------------------------------------------------------+
|  Device  |  Job ID  |    PID    |             Process            |  Memory Usage  |
+===================================================================================+
|       0  |  976356  |  1548305  |  python tutorial/train_gpt.py  |    397 MiB     |
+-----------------------------------------------------------------------------------+
"""

# The GPT tutorial, chapter 3, 24.5.0, as an excerpt: no frame, no version.
TUTORIAL = """\
|  Device  |        Name         |       Flavor     |  Memory Usage  |  Total Memory  |  Utilization  |
|  * 0     |  MoAI Accelerator   |  4xLarge.2048GB  |  1806648 MiB   |  2096640 MiB   |    71%        |
Processes:
|  Device  |  Job ID  |    PID    |             Process           |  Memory Usage  |
|       0  |  977780  |  2219280  |  python tutorial/train_gpt.py |  1806648 MiB   |
"""

# The same tutorial, chapter 5; the name of the flavor is a slip of theirs.
SLIP = """\
+-----------------------------------------------------------------------------------------------------+
|                                                    Current Version: 24.5.0  Latest Version: 24.5.0  |
+-----------------------------------------------------------------------------------------------------+
|  Device  |        Name         |       Flavor     |  Memory Usage  |  Total Memory  |  Utilization  |
+=====================================================================================================+
|  * 0     |  MoAI Accelerator   |  8xLarge.2048GB  |  3516969 MiB   |  4193280 MiB   |     100%      |
+-----------------------------------------------------------------------------------------------------+
"""

# The GPT tutorial's first page, 24.2.0, with its date, idle.
IDLE = """\
11:40:36 April 16, 2024
+-------------------------------------------------------------------------------------------------+
|                                                Current Version: 24.2.0  Latest Version: 24.2.0  |
+-------------------------------------------------------------------------------------------------+
|  Device  |        Name         |     Model    |  Memory Usage  |  Total Memory  |  Utilization  |
+=================================================================================================+
|  * 0     |   MoAI Accelerator  |  Large.256GB  |  -             |  -             |  -            |
+-------------------------------------------------------------------------------------------------+
"""

# A page on which the current version has been left out.
BLANK_VERSION = """\
+----------------------------------------------------------------------------------------------+
|                                                   Current Version:   Latest Version: 24.5.0  |
+----------------------------------------------------------------------------------------------+
|  Device  |        Name         |   Model   |  Memory Usage  |  Total Memory  |  Utilization  |
+==============================================================================================+
|  * 0     |  MoAI Accelerator   |  4xlarge  |  -             |  -             |  -            |
+----------------------------------------------------------------------------------------------+
"""

# Several accelerators, two of them busy.
SEVERAL = """\
+-----------------------------------------------------------------------------------------------------+
|                                                    Current Version: 24.5.0  Latest Version: 24.5.0  |
+-----------------------------------------------------------------------------------------------------+
|  Device  |        Name         |       Model      |  Memory Usage  |  Total Memory  |  Utilization  |
+=====================================================================================================+
|    0     |  MoAI Accelerator   |  8xLarge.4096GB  |  2340037 MiB   |  4193280 MiB   |   87 %        |
|  * 1     |  MoAI Accelerator   |  4xLarge.2048GB  |  789281 MiB    |  2096640 MiB   |   53 %        |
+-----------------------------------------------------------------------------------------------------+

Processes:
+---------------------------------------------------------------------------------------------------+
|  Device  |  Job ID  |    PID    |                     Process                    |  Memory Usage  |
+===================================================================================================+
|       0  |  976362  |  1552601  |  python tutorial/train_gpt.py --batch-size 16  |  2340037 MiB   |
|       1  |  976366  |  1553195  |  python tutorial/train_gpt.py --batch-size 8   |  789281 MiB    |
+---------------------------------------------------------------------------------------------------+
"""

# 2023, with accelerators that have no flavor, and a page's own asterisks.
UNSET = """\
16:11:37 September 11, 2023
+-----------------------------------------------------------------------------------------------------+
|                                                **Current** Version: 23.9.0  Latest Version: 23.8.1  |
+-----------------------------------------------------------------------------------------------------+
|  Device  |        Name         |       Model      |  Memory Usage  |  Total Memory  |  Utilization  |
+====================================****=============================================================+
|  * 0     |  KT AI Accelerator  |  4xLarge.2048GB  |  -             |  -             |  -            |
|    1     |  KT AI Accelerator  |  -               |  -             |  -             |  -            |
|    2     |  KT AI Accelerator  |  -               |  -             |  -             |  -            |
+-----------------------------------------------------------------------------------------------------+
"""

# Another provider's name and a trial container's flavor, 25.1.
TRIAL = """\
+-----------------------------------------------------------------------------------------------+
|                                          Current Version: 25.1.202  Latest Version: 25.1.202  |
+-----------------------------------------------------------------------------------------------+
|  Device  |          Name          |  Model  |  Memory Usage  |  Total Memory  |  Utilization  |
+===============================================================================================+
|  * 0     |  Ambre AI Accelerator  |  micro  |  -             |  -             |  -            |
+-----------------------------------------------------------------------------------------------+
"""

# ap-smi, 25.5: in full, and as an excerpt.
AP_SMI = """\
+-----------------------------------------------------------------------------+
|                                     Accelerator platform Version : v0.0.30  |
|              MoAI Framework Version : 25.5.3005 Latest Version : 25.5.3005  |
+---------+---------+------------------------+----------------+---------------+
|      #  |  NAME   |  FLAVOR                |  MEM USAGE(%)  |  GPU UTIL(%)  |
+---------+---------+------------------------+----------------+---------------+
|      0  |  1779   |  flavor-default-8      |  43            |  100          |
+---------+---------+------------------------+----------------+---------------+
"""
AP_SMI_EXCERPT = "".join(line + "\n" for line in AP_SMI.splitlines() if line.startswith("|"))

ALL = (
    RUNNING,
    TUTORIAL,
    SLIP,
    IDLE,
    BLANK_VERSION,
    SEVERAL,
    UNSET,
    TRIAL,
    AP_SMI,
    AP_SMI_EXCERPT,
)


def prints(text):
    """A shell script's lines that print `text`."""
    return "cat <<'END'\n%sEND\n" % text
